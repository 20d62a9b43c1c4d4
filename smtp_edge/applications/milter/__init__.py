"""The MTA's side of the milter protocol: filters made for Sendmail and Postfix as a sink (`sink`)."""
