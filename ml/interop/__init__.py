"""Models of Hugging Face folders: their configuration and weights, in and out."""
