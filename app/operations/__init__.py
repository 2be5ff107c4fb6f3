"""Running a server: the gunicorn worker, gunicorn's hooks, periodic tasks and the doctor."""
