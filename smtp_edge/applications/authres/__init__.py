"""What can be known of who sent a message: SPF, DKIM, DMARC and ARC, in an Authentication-Results field (`sink.py`)."""
