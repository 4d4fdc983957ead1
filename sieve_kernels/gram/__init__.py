"""Streaming Gram and cross-Gram matrices: the statistics behind every projection and mask."""
