"""`prompt-tuning plan`: compiles, for machines that need not exist here, what would run on them."""
