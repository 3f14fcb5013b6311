"""An application on procrastinate, as its documentation sets one up; run in an environment of its own."""
