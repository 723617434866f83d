"""Where images come from, said in their files: labels, Content Credentials, and how both are read."""
