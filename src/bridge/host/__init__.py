"""The host side: start workers, and call them."""
