"""The operators of the family, one a file: the function users call, its checks, fake, registration and gradients."""
