"""The bundle and the network: from a radiograph to its explanation."""
