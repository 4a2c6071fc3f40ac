"""The worker of one site: everything that is done in the background, as elected duties."""
