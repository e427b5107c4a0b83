"""Text and tokens: tokenizers, chat templates, streaming text out. Pure values, no torch."""
