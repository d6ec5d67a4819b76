"""What runs inside Redis: one script per change of a chat, so that each takes effect whole or not at all.

A chat is one hash, so that it lies on one node of a cluster and one DEL or EXPIRE is for all of it:

    epoch, length       the version
    m<position>         a message: see `pack`
    r<position>         its reply, if it has one
    k<message id>       its position, for the last `window` messages

Epochs are numbers of 62 bits, more than Lua's doubles hold: they are compared as the texts they are.
"""

from __future__ import annotations

import struct
from typing import Final

from backend.session import Message

_HEAD: Final = struct.Struct(">IIq")
"""Bytes of the message id, bytes of the sender id, timestamp. After it: message id, sender id, text, all in UTF-8."""


def pack(message: Message) -> bytes:
    """The bytes of a message, but for its reply."""
    key, sender = message.message_id.encode(), message.sender_id.encode()
    return _HEAD.pack(len(key), len(sender), message.timestamp) + key + sender + message.text.encode()


def unpack(data: bytes, reply: bytes | None) -> Message:
    """The message that `pack` made, with its reply. Raises ValueError or struct.error if it is none."""
    key, sender, timestamp = _HEAD.unpack_from(data)
    start, end = _HEAD.size + key, _HEAD.size + key + sender
    return Message(
        data[end:].decode(),
        data[start:end].decode(),
        timestamp,
        data[_HEAD.size : start].decode(),
        None if reply is None else reply.decode(),
    )


_COMMON: Final = f"""
local chat = KEYS[1]
local function number(value) return string.format('%d', value) end
local function id_of(message)
  return string.sub(message, {_HEAD.size + 1}, {_HEAD.size} + struct.unpack('>I4', message))
end
local function known(length, window, id)
  if id == '' then return nil end
  local position = redis.call('HGET', chat, 'k' .. id)
  return position and tonumber(position) > length - window and position
end
local function add(length, window, id, message, reply)
  local position = length + 1
  redis.call('HSET', chat, 'length', number(position), 'm' .. number(position), message)
  if reply ~= '' then redis.call('HSET', chat, 'r' .. number(position), string.sub(reply, 2)) end
  if id ~= '' then redis.call('HSET', chat, 'k' .. id, number(position)) end
  local leaving = position - window
  if leaving > 0 then
    local old_id = id_of(redis.call('HGET', chat, 'm' .. number(leaving)))
    if old_id ~= '' and redis.call('HGET', chat, 'k' .. old_id) == number(leaving) then
      redis.call('HDEL', chat, 'k' .. old_id)
    end
  end
  return position
end
local function used(ttl)
  if ttl == '0' then redis.call('PERSIST', chat) else redis.call('PEXPIRE', chat, ttl) end
end
local head = redis.call('HMGET', chat, 'epoch', 'length')
local epoch, length = head[1] or '0', tonumber(head[2] or '0')
"""

APPEND: Final = (
    _COMMON
    + """
local window, ttl, new_epoch, expected_epoch, expected_length = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local id, message, reply = ARGV[6], ARGV[7], ARGV[8]
local position = known(length, window, id)
if position then return {'duplicate', epoch, position} end
if epoch ~= expected_epoch or length ~= tonumber(expected_length) then return {'conflict', epoch, number(length)} end
if length == 0 then
  epoch = new_epoch
  redis.call('HSET', chat, 'epoch', epoch)
end
length = add(length, window, id, message, reply)
used(ttl)
return {'appended', epoch, number(length)}
"""
)
"""Arguments: window, ttl in ms (0: none), epoch if the chat is new, expected epoch and length, message id, packed
message, reply (`+` and its text, or nothing).
"""

EXTEND: Final = (
    _COMMON
    + """
local window, ttl, new_epoch = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local before = {epoch, number(length)}
local ever = {}
if ARGV[4] == 'whole' then
  for position = 1, length do
    ever[id_of(redis.call('HGET', chat, 'm' .. number(position)))] = true
  end
  ever[''] = nil
end
for index = 5, #ARGV, 3 do
  if not (ever[ARGV[index]] or known(length, window, ARGV[index])) then
    if length == 0 then
      epoch = new_epoch
      redis.call('HSET', chat, 'epoch', epoch)
    end
    length = add(length, window, ARGV[index], ARGV[index + 1], ARGV[index + 2])
  end
end
if length > 0 then used(ttl) end
return {before[1], before[2], epoch, number(length)}
"""
)
"""Arguments: window, ttl, epoch if the chat is new, `whole` or `window`, then message id, packed message and reply of
each message.
"""

SET_REPLY: Final = (
    _COMMON
    + """
local position = tonumber(ARGV[2])
if epoch ~= ARGV[1] or position < 1 or position > length then return false end
redis.call('HSETNX', chat, 'r' .. number(position), ARGV[3])
return redis.call('HGET', chat, 'r' .. number(position))
"""
)
"""Arguments: epoch, position, reply."""

LOAD: Final = (
    _COMMON
    + """
local recent, last = tonumber(ARGV[1]), tonumber(ARGV[2])
if last < 0 then last = length end
if last < 1 or last > length then return false end
local found = {epoch, number(last)}
for position = math.max(1, last - recent + 1), last do
  found[#found + 1] = redis.call('HGET', chat, 'm' .. number(position))
  found[#found + 1] = redis.call('HGET', chat, 'r' .. number(position))
end
return found
"""
)
"""Arguments: how many messages, the number of the last (-1: the last there is). A script, as the messages to fetch
depend on the length.
"""

END: Final = (
    _COMMON
    + """
redis.call('UNLINK', chat)
return number(length)
"""
)
