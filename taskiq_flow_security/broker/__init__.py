"""TaskIQ: signs what is kicked, verifies and decides before anything runs."""
