"""The KV cache: buffers of each layer, forward passes that continue from them, and rows that join and leave."""
