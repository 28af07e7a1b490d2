"""Samples in, stimuli out: front end and encoding."""
