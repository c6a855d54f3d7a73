"""The application in a browser: a queue of jobs, what they do, and the page that shows it."""
