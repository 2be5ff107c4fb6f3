"""A Flask application whose one view does nothing: what JWKS and metadata can cost at best."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def show_nothing() -> str:
    return ""
