-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- How many tokens a request is charged: reserved before it runs, settled by what the engine counted.
--
-- Charges are whole numbers. A cost table {prompt, cached_prompt, completion} says what one token of each kind is
-- charged; without one every token is charged 1.

local M = {}

local ceil, floor, max, min = math.ceil, math.floor, math.max, math.min
local type = type

-- Tokens per byte of a prompt, as a rule. DeepSeek's API documentation ("Token & Token Usage") gives 0.3 tokens for
-- an English character, which is one byte, and 0.6 for a Chinese one, which is three bytes of UTF-8, so 0.2 per byte;
-- OpenAI's help pages give a quarter of a token for an English character. 0.3 per byte is the highest of these, and
-- per byte it holds for text of more than one byte per character as well. The JSON around the text is counted too and
-- makes few tokens.
local TYPICAL = 0.3

-- Products of whole numbers and factors like 0.1 come out a hair above the whole number that they are.
local HAIR = 1e-6

-- More than any engine counts; guards against an answer that is not one.
local MOST = 2 ^ 40

-- The tokens that a prompt of so many bytes makes.
--   bytes: length of what the engine renders into the prompt (the raw value of messages, prompt or input; of tools as
--     well, if there are any)
--   mode: "bound": no fewer than it can make. A byte-level BPE begins with one token per byte and only merges, and
--     each JSON escape is at least as long as the UTF-8 it stands for; the braces, quotes and names around each
--     message are longer than the special tokens that a chat template puts in their place. It does not hold for
--     pictures and other files that are named by an address. "typical": what text usually makes.
-- Returns a whole number, at least 1.
function M.estimate(bytes, mode)
    if mode == "bound" then
        return (max(1, ceil(bytes)))
    end
    return (max(1, ceil(bytes * TYPICAL - HAIR)))
end

-- What to reserve for a request.
--   prompt_estimate: tokens; max_tokens: the most that one answer may have; n: answers (the greater of n and
--     best_of), 1 unless given; cost: see above
-- Returns a charge, at least 1. The prompt is computed once whatever n is.
function M.reserve(prompt_estimate, max_tokens, n, cost)
    n = n or 1
    if not cost then
        return (max(1, ceil(prompt_estimate + n * max_tokens)))
    end
    return (max(1, ceil(prompt_estimate * cost.prompt + n * max_tokens * cost.completion - HAIR)))
end

local function count(value)
    if type(value) == "number" and value >= 0 and value <= MOST then
        return (floor(value))
    end
    return nil
end

-- Prompt, cached part of it, completion; or nil, sentence.
local function counts(usage)
    if type(usage) ~= "table" then
        return nil, "usage is not an object"
    end
    local prompt, completion = count(usage.prompt_tokens), count(usage.completion_tokens)
    local total = count(usage.total_tokens)
    if not prompt and total and completion and total >= completion then
        prompt = total - completion
    end
    if not prompt then
        return nil, "usage has no prompt_tokens that is a number of tokens"
    end
    if not completion then
        -- Embeddings have none.
        completion = total and max(0, total - prompt) or 0
    end
    local details = usage.prompt_tokens_details
    local cached = type(details) == "table" and count(details.cached_tokens) or 0
    return prompt, min(cached, prompt), completion
end

local function charge(prompt, cached, completion, cost)
    if not cost then
        return prompt + completion
    end
    local sum = (prompt - cached) * cost.prompt + cached * cost.cached_prompt + completion * cost.completion
    return (max(0, ceil(sum - HAIR)))
end

-- What an answer is charged whose engine has counted it.
--   usage: {prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details = {cached_tokens}}
-- Returns a charge, or nil and a sentence if it cannot be read.
function M.actual(usage, cost)
    local prompt, cached, completion = counts(usage)
    if not prompt then
        return nil, cached
    end
    return charge(prompt, cached, completion, cost)
end

-- What a stream is charged that was cut before its engine had counted it, for the engine has worked.
--   prompt_estimate: tokens; chunks: events with text that were sent. An engine that decodes several tokens at a time
--     sends fewer events than tokens: continuous usage is what makes this exact.
--   last_usage: the last continuous usage, or nil
-- Returns a charge: at least 1, and at least that of the last usage.
function M.cut(prompt_estimate, chunks, last_usage, cost)
    local prompt, cached, completion = counts(last_usage)
    if not prompt then
        prompt, cached, completion = prompt_estimate, 0, 0
    end
    return max(1, ceil(charge(prompt, cached, max(completion, chunks or 0), cost)))
end

return M
