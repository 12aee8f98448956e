"""Images of any form, read, checked and prepared for a backbone."""
