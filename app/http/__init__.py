"""HTTP as every endpoint has it: the Flask class, forwarded headers, form parsing, and safe fetches from elsewhere."""
