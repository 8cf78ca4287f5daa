"""The served model: its name, its tokenizer and its engine. Knows no Redis."""
