"""Boards that run the network: their serial protocols, a simulated one, and the contract that they all keep."""
