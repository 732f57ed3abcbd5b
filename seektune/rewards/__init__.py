"""Rewards of sampled answers: verifiers, a server over HTTP, and installed plug-ins."""
