"""HTTP: the Flask class, forwarded headers, form parsing, and safe fetches of documents from elsewhere."""
