"""Sources of raw documents: text, conversations and captioned images."""
