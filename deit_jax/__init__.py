"""Train, distil, fine-tune and study DeiT image transformers in JAX."""

__version__ = "0.1.0"
