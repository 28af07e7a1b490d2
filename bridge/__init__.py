"""The daemon: configuration, protocol, real-time loop, command line."""
