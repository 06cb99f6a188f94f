"""The engines that run a network."""
