"""The spiking network: pure computation, no I/O, no clock."""
