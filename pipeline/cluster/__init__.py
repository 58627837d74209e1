"""Where units run: seats on the nodes of a Ray cluster, or this process; the loop over submit and wait."""
