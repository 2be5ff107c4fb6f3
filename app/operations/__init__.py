"""Running a server: gunicorn's hooks, background jobs and the doctor."""
