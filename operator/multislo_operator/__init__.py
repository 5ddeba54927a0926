"""The operator: decides how many instances each tier has, and carries that out."""
