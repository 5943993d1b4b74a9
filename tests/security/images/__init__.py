"""Images made to harm whoever opens them."""
