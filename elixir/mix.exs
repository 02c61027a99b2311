defmodule DSPex.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :dspex_bridge,
      version: @version,
      elixir: "~> 1.14",
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      deps: [],
      name: "DSPex bridge",
      description: "Run DSPy programs from Elixir, in a Python worker process behind a port.",
      package: package(),
      docs: docs()
    ]
  end

  def application, do: [extra_applications: [:logger]]

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_), do: ["lib"]

  defp package do
    [
      licenses: ["MIT"],
      links: %{},
      files: ~w(lib guides mix.exs .formatter.exs README.md LICENSE)
    ]
  end

  defp docs do
    [
      main: "getting_started",
      extras: ["guides/getting_started.md", "guides/cluster.md", "README.md"]
    ]
  end
end
