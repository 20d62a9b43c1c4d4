"""Who may submit: passwords against a users file, Dovecot, or a class of yours; and who guesses too often."""
