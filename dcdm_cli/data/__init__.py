"""Images and the table that describes them."""
