"""How `rescope.events.Timeline` draws: events (`tree`) become spans, and spans become text, SVG or a Chrome trace."""
