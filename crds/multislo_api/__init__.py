"""What the programs tell each other and what users write: the manifest, and the fleet's documents."""
