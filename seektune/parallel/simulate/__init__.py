"""A job of any size in one process: fake collectives, even routing, and a trace of what is sent."""
