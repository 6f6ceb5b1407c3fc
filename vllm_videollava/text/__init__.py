"""Turns messages into token ids: the conversation's template, placeholders and tokenizers."""
