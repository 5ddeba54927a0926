"""What a manifest's fleet would do with a user's own traffic: what it attains, how many accelerators it takes, and what another SLO, tier
or accelerator would change. Behind `multislo simulate --manifest` and `multislo plan`."""
