mod apply;
mod eval;
mod source;
mod train;
mod view;

use interp::Result;
use interp::task::{SHIPPED, Task};

use super::args::Global;

pub use eval::{at_sites, chosen};
pub use source::stamp;

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::Args,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Fit probes at every layer, and hold them against controls; the same as no subcommand.
    Train(Box<train::Args>),
    /// Judge saved probes on rows that they were not fitted on.
    Eval(Box<eval::Args>),
    /// What saved probes say of every token of a text.
    Apply(Box<apply::Args>),
    /// The plane in which activations differ most, and the clusters that they fall into.
    View(Box<view::Args>),
    /// The tasks that come with the workbench.
    Tasks,
}

pub fn run(args: Args, global: &Global) -> Result<()> {
    match args.command {
        Some(Command::Tasks) => tasks(global),
        Some(Command::Eval(args)) => eval::run(&args, global),
        Some(Command::Apply(args)) => apply::run(&args, global),
        Some(Command::View(args)) => view::run(&args, global),
        Some(Command::Train(args)) => train::run(&args, global),
        None => train::run(&args.train, global),
    }
}

fn tasks(global: &Global) -> Result<()> {
    let mut lines = Vec::new();
    for (name, _) in SHIPPED {
        if let Some(task) = Task::shipped(name) {
            let task = task?;
            lines.push(format!("{name:<22} {:<6} {}", task.suits, task.about));
        }
    }
    super::output::say(global, &lines.join("\n"))
}
