"""The installed package: jobs, pipeline, model and conf. In a checkout these are links to the folders beside it."""
