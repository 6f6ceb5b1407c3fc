"""Messages to token ids: the conversation's template, placeholders, tokenizers."""
