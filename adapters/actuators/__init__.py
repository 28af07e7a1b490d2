"""Actuators: what the spikes, commands and stimulation trains of a session go to."""
