"""The reference chat server: sessions in a three-level cache behind `chat.ChatService`."""
