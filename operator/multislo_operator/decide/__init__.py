"""The law of scaling: from what is observed of a fleet to a plan of actions. Pure: no IO, no clock."""
