"""Between text and tokens: chat template, tokens in, incremental text out. Runs in the Triton stub: no torch here."""
