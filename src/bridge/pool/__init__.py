"""Several workers for one host: which slot gets a call, and what happens after an error."""
