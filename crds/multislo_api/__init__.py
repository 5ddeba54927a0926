"""The manifest, and the documents that programs exchange about a fleet."""
