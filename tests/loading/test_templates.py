"""Chat templates: the text of transformers' own for every good one, and one line, within the limits, for every other."""
# ruff: noqa: E501  templates stand as their models write them

import json
import os
import re
import signal
import subprocess
import sys
import time
from shutil import copytree

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inspector.loading import templates
from inspector.loading.finding import ASSETS, LoadError
from inspector.loading.loaded import attach
from inspector.loading.loading import load
from inspector.loading.templates import TemplateError, applied, encoded, forget

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<r>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + ('#' if loop.index0 == ns.last_query_index else '') }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}"""
LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|h|>' + message['role'] + '<|/h|>\n\n'+
message['content'] | trim + '<|eot|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"""
LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|h|>system<|/h|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{%- for message in messages %}
    {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
{%- endfor %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}
{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% endfor %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{ '<s>' + role + '\n' + message['content'] | trim + '<e>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<s>model\n'}}{% endif %}"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{bos_token}}{{ns.system_prompt}}
{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<|User|>' + message['content']}}{%- endif %}{%- endfor -%}
{% if add_generation_prompt and not ns.is_tool %}{{'<|Assistant|>'}}{% endif %}"""
MACROS = """{% macro turn(role, content) -%}<{{ role | upper }}>{{ content | replace('a', 'б') | indent(2) }}</{{ role | upper }}>{%- endmacro %}
{% macro box(title) %}[{{ title }}{{ caller() }}]{% endmacro %}
{% for m in messages %}{{ turn(m.role, m.content) }}{% call box('x') %}{{ loop is defined }}{% endcall %}
{% endfor %}"""
GOOD = {
    "qwen2.5": QWEN,
    "qwen3": QWEN3,
    "llama 3": LLAMA3,
    "llama 3.1": LLAMA31,
    "llama 2": LLAMA2,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "chatml": CHATML,
    "deepseek": DEEPSEEK,
    "macros": MACROS,
    "phi": "{% for m in messages %}{% if m['role'] == 'system' %}{{'<|system|>\n' + m['content'] + '<|end|>\n'}}{% elif m['role'] == 'user' %}"
    "{{'<|user|>\n' + m['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}x{% endif %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "command-r": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|S|>' + system_message }}"
    "{% endif %}{% for m in loop_messages %}{% set content = m['content'] %}{{ '<|U|>' + content.strip() }}{% endfor %}",
    "tojson with Cyrillic": "{{ messages | tojson }}{{ messages | tojson(indent=4) }}{{ {'б': '<&>'} | tojson(ensure_ascii=true) }}",
    "separators": "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}",
    "loop controls": "{% for m in messages * 3 %}{% if loop.index > 2 %}{% break %}{% endif %}{% if loop.index == 1 %}{% continue %}{% endif %}"
    "{{ m.content }}{% endfor %}{{ messages[-1].content }}",
    "generation": "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "nested generation": "{% for m in messages %}{%- generation -%}\n {{ m.content }} \n{%- endgeneration -%}{% endfor %}",
    "trim and lstrip blocks": "a\n  {% if true %}\n  b\n  {% endif %}\n{{ messages[0].content }}\n  {# comment #}\nc\n\n",
    "special tokens": "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token is defined }}|{{ sep_token }}{{ messages[0].content }}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + m.content | length %}{% endfor %}{{ n.i }}",
    "namespace of self": "{% set n = namespace({'a': 1}, self=2) %}{{ n.a }}{{ n.self }}{{ messages[0].content }}",
    "dict": "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ d.items() | list }}{{ dict.fromkeys('ab', 1) }}{{ messages[0].content }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ nothing is defined }}{{ nothing | default('z') }}{{ messages[0].content }}",
    "tools and documents": "{{ tools is none }}{{ documents is none }}{{ tools }}{{ add_generation_prompt }}{{ messages[0].content }}",
    "filters": "{{ messages | map(attribute='content') | join('+') | title }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages[-1].content | wordwrap(7) }}{{ '%s-%05.2f' | format('x', 2.5) }}{{ [3, 1] | sort | pprint }}{{ '<b>й</b>' | striptags }}",
    "more filters": "{{ messages[-1].content | e }}{{ messages[-1].content | urlencode }}{{ {'b': 1, 'a': 2} | dictsort }}{{ messages[-1].content[::-1] }}"
    "{{ messages | groupby('role') | list | length }}{{ [1, 2, 3] | batch(2) | list }}{{ messages[-1].content | reverse | list | last }}",
    "methods of text": "{{ messages[-1].content.split('н') }}{{ messages[-1].content.encode('utf-16') | length }}{{ '{:>9}'.format('é') }}",
    "numbers": "{{ 7 // 2 }}{{ 2 ** 10 }}{{ 1e3 }}{{ range(5) | sum }}{{ 0.1 + 0.2 }}{{ messages[0].content ~ 5 }}",
    "raw and whitespace": "{% raw %}{{ no }}{% endraw %}\n\n  {%- set x = 1 -%}  \n{{ messages[0].content }}{{ '\\n' }}",
    "blocks and set": "{% set text %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ text | trim | length }}{{ text }}",
    "filter block": "{% filter upper %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfilter %}",
    "recursive loop": "{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}"
    "{{ messages[0].content }}",
    "generators": "{% for m in messages | map(attribute='content') %}{{ loop.last }}{{ m }}{% endfor %}",
    "several": {"default": CHATML, "tool_use": "T", "rag": "R"},
    "Russian": "Вопрос: {{ messages[-1].content }}\nОтвет («кратко»): 😀 \u202e",
}
PROMPTS = ["Назови «Крас».", " two\nlines \r\n", "{{ 7*7 }}{% x %}", "<|im_end|>\n<s> &amp; 😀\u2028\x00\x1b[31m", "", "нет\ud800"]


def tokenizer_with(template: object) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with this chat template."""
    own = Tokenizer(models.BPE({piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", extra_special_tokens=["<|im_end|>"])
    made.chat_template = template
    return made


def transformers_own(tokenizer, prompt: str, system: str | None, **how) -> object:
    """What ``apply_chat_template`` gives."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    return tokenizer.apply_chat_template([*messages, {"role": "user", "content": prompt}], add_generation_prompt=True, **how)


@pytest.mark.parametrize("name", GOOD)
def test_a_good_template_gives_the_text_and_ids_of_transformers(name):
    tokenizer = tokenizer_with(GOOD[name])
    for prompt in PROMPTS:
        for system in (None, "Отвечай кратко. ", ""):
            try:
                text = transformers_own(tokenizer, prompt, system, tokenize=False)
            except Exception as error:
                with pytest.raises(TemplateError, match=r"refuses the messages|fails: UnicodeEncodeError") as refused:
                    applied(tokenizer, prompt, system)
                assert str(error) in str(refused.value)
                continue
            if not text:
                with pytest.raises(TemplateError, match=r"empty"):
                    applied(tokenizer, prompt, system)
                continue
            assert applied(tokenizer, prompt, system) == text
            if "\ud800" not in prompt and system is None:
                assert encoded(tokenizer, prompt) == transformers_own(tokenizer, prompt, system)["input_ids"]


HOSTILE = {  # template → what the line says
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "takes more than 1 s",
    "{{ 9**(9**9) }}": "takes more than 1 s",
    "{{ 'a'*2000000000 }}": "takes more than 0.5 GB of memory",
    "{{ '%02000000000d' % 1 }}": "takes more than 0.5 GB of memory",
    "{{ '{:>2000000000}'.format('a') }}": "takes more than 0.5 GB of memory",
    "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}": "takes more than",
    "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}": "takes more than",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "fails: RecursionError",
    "{% for i in range(9999) %}{{ 'a'*9999 }}{% endfor %}": "makes more than 1,000,008 characters of 2|takes more than",
    "{{ '" + "a" * 3_000_000 + "' }}": "makes more than 1,000,008 characters",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}": "fails: RecursionError|broke off|memory",
    "{{ " + "(" * 150 + "1" + ")" * 150 + "}}" + "{% if 1 %}" * 150 + "{% endif %}" * 150: "fails: ",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "fails: SecurityError",
    "{{ messages.append(1) }}": "fails: SecurityError",
    "{{ messages[0].update({'role': 'x'}) }}": "fails: SecurityError",
    "{{ namespace(__init__=1) }}": "fails: SecurityError",
    "{{ cycler.__init__.__globals__.os.system('true') }}": "fails: SecurityError",
    "{{ range(999999999) | list }}": "fails: OverflowError",
    "{% include '/etc/passwd' %}": "fails: ",
    "{% import 'os' as os %}{{ os }}": "fails: ",
    "{{ raise_exception('only\nusers, \x1b[31m' + 'please ' * 999) }}": "refuses the messages: 'only users, .{,2}x1b.*…'",
    "{{ raise_exception(messages) }}": "refuses the messages",
    "{{ messages[0].content.nothing.more }}": "fails: UndefinedError",
    "{{ 1 + 'a' }}": "fails: TypeError",
    "{{ 1 / 0 }}": "fails: ZeroDivisionError",
    "{{ messages[7].content }}": "fails: UndefinedError",
    "{{ nothing | tojson }}": "fails: TypeError",
    "{{ nothing() }}": "fails: UndefinedError",
    "{% for m in 5 %}{% endfor %}": "fails: TypeError",
    "{% if %}": "is no Jinja that can be read: line 1",
    "\n{{ messages": "is no Jinja that can be read: line 2",
    "{% for m in messages %}": "is no Jinja",
    "{% nonsense %}": "is no Jinja.*nonsense",
    "{{ messages | nonsense }}": "is no Jinja.*nonsense",
    "{% if messages is nonsense %}{% endif %}": "fails: .*nonsense",
    "{# nothing #}": "makes an empty text",
    "": "makes an empty text",
}


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_another_gives_one_line_within_the_limits(template, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(TemplateError, match=f"(?s).*({HOSTILE[template]}).*: --raw leaves the template out$") as refused:
        applied(tokenizer_with(template), "hi")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert time.monotonic() - begun < 4
    assert applied(tokenizer_with("{{ messages[0].content }}"), "hi") == "hi"


@pytest.mark.parametrize(
    "template", [5, True, b"{{ 1 }}", ["a"], {}, {"tool_use": "a"}, {"default": 5}, {"default": None}, {1: 2}], ids=repr
)
def test_what_is_no_template_is_refused_by_its_value(template):
    with pytest.raises(TemplateError, match=r"(is|of) .*: --raw leaves the template out"):
        applied(tokenizer_with(template), "hi")


def test_a_tokenizer_with_a_way_of_its_own_keeps_it():
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, conversation, tokenize=True, **how):
            if "bad" in conversation[-1]["content"]:
                raise KeyError("bad")
            return {"input_ids": [1, 2]} if tokenize else f"own {conversation[-1]['content']}"

    tokenizer = Own(tokenizer_object=tokenizer_with(None).backend_tokenizer)
    tokenizer.chat_template = "{{ 'not this' }}"
    assert (applied(tokenizer, "hi"), encoded(tokenizer, "hi")) == ("own hi", [1, 2])
    with pytest.raises(TemplateError, match=r"fails: KeyError"):
        applied(tokenizer, "bad")


def test_a_thousand_prompts_start_one_process_and_another_template_another():
    forget()
    tokenizer, begun = tokenizer_with(QWEN), time.monotonic()
    for i in range(300):
        assert f"user\n{i}<" in applied(tokenizer, str(i), "Be kind.")
    assert templates.CURRENT[0].served == 300 and time.monotonic() - begun < 3
    applied(tokenizer_with(CHATML), "hi")
    assert templates.CURRENT[0].template == CHATML and templates.CURRENT[0].served == 1


def test_one_that_died_meanwhile_is_started_anew():
    tokenizer = tokenizer_with(CHATML)
    text = applied(tokenizer, "hi")
    templates.CURRENT[0].process.kill()
    templates.CURRENT[0].process.wait()
    assert applied(tokenizer, "hi") == text


def test_a_long_prompt_has_room_in_proportion():
    assert len(applied(tokenizer_with(CHATML), "ы" * 10_000_000)) > 10_000_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_process_of_its_own():
    tokenizer = tokenizer_with(CHATML)
    text, before = applied(tokenizer, "hi"), templates.CURRENT[0].process.pid
    if not (forked := os.fork()):
        right = not templates.CURRENT and applied(tokenizer, "hi") == text and templates.CURRENT[0].process.pid != before
        forget()
        os._exit(0 if right else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert applied(tokenizer, "hi") == text and templates.CURRENT[0].process.pid == before


PARENT = """
import sys, time
from inspector.loading import templates
templates.SECONDS = 2
templates.rendered("{{ 1 }}", {}, 0)
busy = sys.argv[1] == "busy"
if busy:
    templates.CURRENT[0].template = ENDLESS
print(templates.CURRENT[0].process.pid, flush=True)
if busy:
    templates.rendered(ENDLESS, {}, 0)
time.sleep(60)
""".replace("ENDLESS", repr("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"))


def stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be read by its parent has ended."""
    try:
        return stat(pid)[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processor_time(pid: int) -> float:
    """Seconds of the processor that a process took."""
    return sum(map(int, stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(params=["idle", "busy"])
def parent_and_child(request):
    """A process that renders templates, and the process id of the one that does it for it."""
    environment = os.environ | {"SECRET_TOKEN": "hf_secret"}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, request.param], stdout=subprocess.PIPE, env=environment, text=True)
    try:
        child = int(parent.stdout.readline())
        while request.param == "busy" and processor_time(child) < 0.5:  # until it is at it: a start takes less
            time.sleep(0.02)
        yield parent, child
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_knows_nothing_of_its_parent_and_does_not_outlive_it(parent_and_child):
    parent, child = parent_and_child
    with open(f"/proc/{child}/environ") as held:
        assert "SECRET" not in held.read()
    with open(f"/proc/{child}/maps") as held:
        assert "torch" not in held.read()
    assert len(os.listdir(f"/proc/{child}/fd")) <= 4
    assert os.getsid(child) == child  # a terminal's Ctrl-C goes to the parent alone
    os.kill(child, signal.SIGINT)
    assert is_alive(child)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20  # of an idle one the input ends; of a busy one the time of the processor
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(child)


def test_what_a_template_breaks_is_told_with_the_model_and_leaves_raw_as_it_was():
    m = load("names-qwen2")
    own = m.tokenizer.chat_template
    try:
        m.tokenizer.chat_template = "{{ 1 / 0 }}"
        with pytest.raises(ValueError, match=r"^the chat template of names-qwen2 fails: ZeroDivisionError: division by zero: --raw leaves"):
            m.encode("Крас")
        assert m.encode("Крас", raw=True)
        m.tokenizer.chat_template = "{{ messages[-1].content }}"
        with pytest.raises(ValueError, match=r"^the chat template of names-qwen2 leaves a system message out: leave out --system"):
            m.encode("Крас", "Be kind.")
        assert m.encode("Крас", "") == m.encode("Крас", None)
        m.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        assert m.encode("Крас", "А") == m.encode("АКрас")
    finally:
        m.tokenizer.chat_template = own


@pytest.mark.parametrize(
    ("chat_template", "told"),
    [
        ([5], "holds 5"),
        (["a"], "holds 'a'"),
        ([{"name": "default"}], "holds {'name'"),
        ([{"template": "a"}], "holds {'template'"),
        (b"\xff", "byte 0"),
    ],
)
def test_templates_that_cannot_be_read_are_told_by_their_file(chat_template, told, tmp_path):
    copytree(ASSETS / "names-qwen2", tmp_path, dirs_exist_ok=True)
    if isinstance(chat_template, bytes):
        (tmp_path / "chat_template.jinja").write_bytes(chat_template)
    else:
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf8"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | dict(chat_template=chat_template)), encoding="utf8")
    with pytest.raises(LoadError, match=rf"(?s)chat_template.*{re.escape(told)}.*: (take it out|write it anew)"):
        load(str(tmp_path))


def test_a_system_message_without_a_template_is_refused():
    for m in (load("names-qwen2"), attach(load("names-qwen2").model)):
        for system in ("Be kind.", ""):
            with pytest.raises(ValueError, match=r"a system message has no place: .* has no chat template: leave --system out"):
                m.encode("1", system)
