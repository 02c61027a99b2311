defmodule DSPex.PythonBridge.Mock.Declarations do
  @moduledoc """
  The commands of a worker with DSPy: lane, whether repeating one is harmless, and the types of the args
  (see `DSPex.PythonBridge.Mock.Args`). Tests compare them with what a worker describes.
  """

  alias DSPex.PythonBridge.Mock.Schemas

  @text {:nullable, :string}
  @number {:nullable, :float}
  @whole {:nullable, :integer}
  @id {:required, {:either, [:integer, :string]}}
  @program_id %{"program_id" => @text}
  @model {:nullable,
          {:text_or_map, :string, {:struct, %{"models" => {:required, {:list, :string}}}}}}
  @index %{"index_id" => {:required, :string}}
  @texts Map.put(@index, "texts", {:required, {:list, :string}})
  @embedder %{
    "model" => {:required, :string},
    "name" => @text,
    "provider" => @text,
    "api_key" => @text,
    "api_base" => @text,
    "dimensions" => {:nullable, {:whole, 1, 65_536}},
    "batch_size" => {:whole, 1, 100_000},
    "timeout" => :float,
    "retries" => {:whole, 0, 10}
  }
  @format {:nullable,
           {:text_or_map, :string,
            {:struct,
             %{
               "name" => :string,
               "fallback" => @text,
               "model" => @text,
               "native" => :boolean
             }}}}
  @if_exists {:one_of, ["error", "keep", "replace"]}
  @include {:list, {:one_of, ["usage", "cost", "completions", "trajectory", "prompt"]}}
  @threads {:whole, 1, 256}
  @metric {:either, [:string, {:map, :any}]}
  @create %{
    "signature" => {:required, :any},
    "id" => @text,
    "program_type" => :string,
    "tools" => {:nullable, {:list, :string}},
    "max_iters" => {:nullable, {:whole, 1, 100}},
    "allow_no_tools" => {:nullable, :boolean},
    "indexes" => {:nullable, {:list, :string}},
    "index" => @text,
    "base" => {:nullable, {:one_of, ["predict", "chain_of_thought", "react"]}},
    "n" => {:nullable, {:whole, 1, 64}},
    "reward" =>
      {:nullable,
       {:text_or_map, {:one_of, ["filled"]}, {:struct, %{"host" => {:required, :string}}}}},
    "threshold" => @number,
    "field" => @text,
    "k" => {:nullable, {:whole, 1, 100}},
    "max_llm_calls" => {:nullable, {:whole, 0, 1000}},
    "max_output_chars" => {:nullable, {:whole, 100, 1_000_000}},
    "max_step_seconds" => @number,
    "source" => @text,
    "stages" => {:nullable, {:either_form, {:list, :any}, {:map, :any}}},
    "outputs" => {:nullable, {:map, :string}},
    "adapter" => @format,
    "model" => @model,
    "demos" => {:list, :any},
    "if_exists" => @if_exists,
    "modules" => :ignored,
    "pool_name" => :ignored
  }
  @generation %{
    "temperature" => @number,
    "max_tokens" => @whole,
    "top_p" => @number,
    "top_k" => @whole,
    "stop" => {:nullable, {:either, [:string, {:list, :string}]}},
    "seed" => @whole,
    "frequency_penalty" => @number,
    "presence_penalty" => @number,
    "n" => @whole,
    "reasoning_effort" =>
      {:nullable, {:one_of, ["none", "minimal", "low", "medium", "high", "xhigh", "max"]}},
    "response_format" => {:nullable, {:map, :any}},
    "service_tier" => @text,
    "user" => @text
  }
  @configure Map.merge(@generation, %{
               "name" => @text,
               "model" => @text,
               "provider" => @text,
               "type" => @text,
               "api_key" =>
                 {:nullable, {:text_or_map, :string, {:struct, %{"env" => {:required, :string}}}}},
               "api_base" => @text,
               "api_version" => @text,
               "extra_headers" => {:nullable, {:map, :string}},
               "model_type" => {:one_of, ["chat", "responses"]},
               "timeout" => :float,
               "answers" => {:nullable, {:either_form, {:list, :any}, {:map, :any}}},
               "cache" => :integer,
               "retries" => :integer,
               "retry_wait" => :float,
               "retry_cap" => :float,
               "history" => :integer,
               "adapter" => @format,
               "fallback" => @text
             })
  @run %{
    "program_id" => @text,
    "adapter" => @format,
    "model" => @model,
    "options" =>
      {:nullable,
       {:struct,
        Map.merge(@generation, %{
          "pool_name" => :ignored,
          "session_id" => :ignored,
          "timeout" => :ignored,
          "pool_timeout" => :ignored
        })}}
  }
  @execute Map.merge(@run, %{
             "inputs" => {:map, :any},
             "include" => @include,
             "program_data" =>
               {:nullable,
                {:open, %{"signature" => :any, "signature_def" => :any, "program_type" => @text}}}
           })
  @quota {:struct, %{"programs" => @whole, "bytes" => @whole}}
  @levels ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

  @commands %{
    "add_to_index" => {"session", false, Map.put(@texts, "vectors", :any)},
    "cancel" => {"inline", true, %{"id" => @id}},
    "cleanup" => {"end_all", true, %{}},
    "cleanup_session" => {"end_session", true, %{}},
    "configure_embedder" => {"everyone", true, @embedder},
    "configure_lm" => {"everyone", true, @configure},
    "create_gemini_program" =>
      {"session", false, Map.merge(@create, %{"signature" => :any, "model" => @text})},
    "create_index" =>
      {"session", false,
       Map.merge(@texts, %{
         "vectors" => :any,
         "embedder" => @text,
         "metric" => {:one_of, ["cosine", "dot"]},
         "if_exists" => @if_exists
       })},
    "create_program" => {"session", false, @create},
    "create_session" =>
      {"session", true,
       %{"ttl_s" => @number, "durable" => {:nullable, :boolean}, "quota" => {:nullable, @quota}}},
    "delete_index" => {"session", false, @index},
    "delete_program" => {"session", false, @program_id},
    "embed" => {"thread", true, %{"texts" => {:required, {:list, :string}}, "embedder" => @text}},
    "describe" => {"inline", true, %{}},
    "evaluate" =>
      {"run", false,
       Map.merge(@run, %{
         "devset" => {:required, :any},
         "metric" => {:required, @metric},
         "others" => {:list, :any},
         "include" => @include,
         "threads" => @threads,
         "results" => :boolean
       })},
    "execute_batch" =>
      {"run", false,
       Map.merge(@run, %{
         "inputs" => {:required, {:list, :any}},
         "threads" => @threads,
         "include" => @include,
         "results" => :boolean
       })},
    "execute_gemini_program" => {"run", false, @execute},
    "execute_program" => {"run", false, @execute},
    "export_program" => {"thread", true, @program_id},
    "get_history" => {"thread", true, %{"limit" => {:whole, 0, 1000}}},
    "get_program" =>
      {"thread", true,
       Map.put(@program_id, "include", {:list, {:one_of, ["demos", "instructions"]}})},
    "get_program_info" => {"thread", true, @program_id},
    "get_session" => {"worker", true, %{}},
    "get_session_data" => {"thread", true, %{"key" => @text}},
    "get_stats" =>
      {"inline", true,
       %{
         "include" => {:nullable, {:list, :string}},
         "limit" => :integer,
         "format" => @text
       }},
    "hello" => {"inline", true, %{"offers" => {:map, :boolean}}},
    "import_program" =>
      {"session", false,
       Map.merge(@program_id, %{"document" => {:required, :any}, "if_exists" => @if_exists})},
    "inspect_call" => {"thread", true, %{"id" => {:required, :integer}}},
    "load_program" =>
      {"session", false,
       Map.merge(@program_id, %{"path" => {:required, :string}, "if_exists" => @if_exists})},
    "optimize" =>
      {"run", false,
       Map.merge(@program_id, %{
         "adapter" => @format,
         "model" => @model,
         "optimizer" => {:required, :string},
         "trainset" => {:required, {:list, :any}},
         "valset" => {:list, :any},
         "metric" => {:required, @metric},
         "options" => :any,
         "save_as" => @text,
         "replace" => :boolean
       })},
    "save_program" => {"thread", true, Map.put(@program_id, "path", {:required, :string})},
    "list_programs" => {"thread", true, %{"limit" => {:whole, 0, 1_000_000}}},
    "list_indexes" => {"thread", true, %{}},
    "list_sessions" => {"worker", true, %{"limit" => {:whole, 0, 1_000_000}}},
    "pause" => {"inline", true, %{"id" => @id}},
    "ping" => {"inline", true, :unchecked},
    "register_tools" =>
      {"session", true,
       %{"tools" => {:required, {:list, Schemas.tool_type()}}, "replace" => :boolean}},
    "reset_state" => {"end_all", true, %{}},
    "resume" => {"inline", true, %{"id" => @id}},
    "search_index" =>
      {"thread", true,
       Map.merge(@index, %{
         "query" => @text,
         "queries" => {:nullable, {:list, :string}},
         "vector" => :any,
         "vectors" => :any,
         "k" => {:whole, 1, 10_000},
         "tensors" => :boolean
       })},
    "set_log_level" =>
      {"inline", true, %{"level" => {:required, {:one_of, @levels}}, "logger" => @text}},
    "shutdown" => {"inline", false, %{"worker_id" => :ignored}},
    "update_session_data" =>
      {"session", true, %{"operation" => :string, "key" => @text, "value" => :any}}
  }

  @doc "Returns `{lane, idempotent, types of the args}` of all commands by name."
  @spec all() :: %{String.t() => {String.t(), boolean(), map() | :unchecked}}
  def all, do: @commands
end
