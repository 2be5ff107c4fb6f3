# The server, its commands and its migrations in one image; docs/production.md says how it is run.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /opt/tokenhouse
RUN python -m venv .venv
COPY setup.cfg setup.py requirements.txt README.md LICENSE ./
RUN .venv/bin/pip install --require-hashes --requirement requirements.txt
COPY app app
COPY buffered_worker buffered_worker
RUN .venv/bin/pip install --no-deps --no-build-isolation --editable .
COPY config config
COPY migrations migrations
COPY wsgi.py ./
# Once for all: the file system is read-only when it runs.
RUN .venv/bin/python -m compileall -q app buffered_worker config migrations wsgi.py

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin tokenhouse
COPY --from=build /opt/tokenhouse /opt/tokenhouse
# For SQLite and a key ring in files, if they are used at all.
RUN install -d -m 0700 -o 10001 -g 10001 /opt/tokenhouse/instance
WORKDIR /opt/tokenhouse
USER 10001:10001
ENV PATH=/opt/tokenhouse/.venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOST=0.0.0.0 PORT=8080
EXPOSE 8080 9464
# Not /readyz: what replaces containers that are unwell would end those that publish the keys while the database is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/livez', timeout=4)"]
CMD ["gunicorn", "--config", "config/gunicorn.py", "wsgi:app"]
